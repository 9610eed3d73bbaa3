"""What is done by whom, where and when: boxes of people in clips, and their actions (AVA).

`roi_head` is the model, `objective` the training, `evaluation` the test of a run.
"""
