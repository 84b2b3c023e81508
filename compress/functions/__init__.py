"""The algorithms as functions on a plain `torch.nn.Module`, and whole pipelines; `compress` itself has them by name.

Each leaves the module that it is given as it was. What a report would remark goes to the logger `compress`.
"""
