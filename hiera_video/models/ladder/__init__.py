"""The ladder from MViTv2 to Hiera (paper, Table 1): every step between them as a registered model.

`ablation` says in what a step differs from Hiera, `models` are the classes that build it, `pooling`
and `relative_positions` are MViTv2's parts, `layouts` their token orders, `steps` and `mvit`
register the models. Nothing outside this folder, the package's list of models and the loading of
weights apart, imports it.
"""
