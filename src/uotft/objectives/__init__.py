"""The shelf of training objectives: one file each.

A module holds ``terms(outputs, labels, weight)``: from {head: logits (n, classes)}, {head: (n,)}
and lambda to {name: (loss, weight)}. The loop adds weight * loss and logs every loss by its name.
"""
