"""Networks: backbones and their weights, heads, prediction, export."""
