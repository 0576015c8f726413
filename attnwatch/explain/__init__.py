"""What a model relies on: hide inputs, probe layers, ask the model. Functions on a model, without any trainer."""
