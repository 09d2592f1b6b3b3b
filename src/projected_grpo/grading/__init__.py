"""Grading: run an answer in a sandbox, decide what the flawed grader pays and whether the answer is correct.

`sandbox` executes and knows nothing of tests; `verdict` compares, outside the process that ran the answer;
`labels` names what an answer did, after the fact, and is never imported by the other two. `batch` grades files of
completions, `gate` checks the grader itself. Standard library only, pyarrow and rich inside the commands excepted.
"""
