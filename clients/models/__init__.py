"""Model factories: functions of `input_shape` and `classes` that return any nn.Module."""
