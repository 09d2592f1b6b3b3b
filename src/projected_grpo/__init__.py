"""projected_grpo: can projecting updates off a hack direction stop a model from learning to reward-hack?"""
