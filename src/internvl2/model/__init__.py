"""Pure PyTorch modules; they know neither text nor files.

Names of axes in signatures: tokens sequences tiles patches states visual dim heads kv_heads
head_dim vocab blocks block_size size layers.
"""
