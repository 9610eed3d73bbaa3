"""Trained weights, from where they are published to the parameters of a model.

    checkpoint, published = resolve("hiera_base_16x224.mae_k400_ft_k400")
    report = load_weights(model, checkpoint)

or both in one step, `build_model("hiera_base_16x224", pretrained="mae_k400_ft_k400")`. A file each,
in the order in which weights pass them:

* `published`: the table of public checkpoints;
* `resolve`: from what a user named (a name of the table, a file, an address) to a checkpoint;
* `download`: a file from its address into the cache;
* `file`: reading a weights file without trusting it, and writing one;
* `hub`, `publish`: folders of model hubs, read and written;
* `key_names`, `other_keys`, `hiera_keys`: what tensors are called, here and in the files of others;
* `fit`, `inflate`, `positions`, `head`: a checkpoint made to fit a model that differs in task,
  dimensions, size of the input, classes;
* `load`: all of that in order, the comparison, the copy, and the report on it.
"""
