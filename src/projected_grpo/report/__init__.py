"""What a person looks at: terminal and Markdown tables, CSV for `dvc plots`, PNG figures. No imports
here."""
