"""Training: TRL's GRPOTrainer, subclassed as little as possible, with hooks for interventions."""
