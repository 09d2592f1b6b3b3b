"""The policy to start from: the micro model's tokenizer, corpus and pretraining, and the checks of any base."""
