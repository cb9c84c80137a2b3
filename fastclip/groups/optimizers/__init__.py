"""What is done with optimizers made of groups: checked, thawed, resumed by name."""
