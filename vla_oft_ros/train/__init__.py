"""Fine-tuning: demonstrations → a checkpoint in the official layout.

`finetune` is the loop; `base` builds the network to train, `lora` says what of it is trained,
`samples` feeds it, `objectives` are its losses, `schedule` its learning rate, `processes` its
several processes, `checkpoints` what is saved and how training resumes. Everything random is a
function of the seed and the step, so a resumed training repeats an uninterrupted one.
"""
