"""Model factories: functions of `input_shape` and `classes` that return a torch.nn.Module.

How federated training sees a module is in `fedhet/model`.
"""
