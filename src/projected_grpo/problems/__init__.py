"""Problems: statements, hidden tests, loophole hints and the contrastive pairs. No torch here."""
