"""Several processes that train one net together, as `torchrun` starts them.

Each runs the whole program. Of every batch each runs the student on its own rows (`synchronized`); what comes out is
gathered (`slices`), so that each computes the same loss of the whole batch, and the gradients are summed (`group`).
Only the first process, rank 0, writes files and talks. In a single process all of this costs nothing.
"""
