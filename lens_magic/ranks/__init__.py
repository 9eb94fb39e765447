"""The group of MPI ranks: starting it, giving it work, interrupting it, losing it and starting it again.

Rank 0 is the process the user works in (the notebook's kernel). It spawns the others, sends each the same command over
a local control channel, runs the command itself, and collects every rank's status. What the ranks compute together
travels by MPI (CPU) or NCCL (GPUs).
"""
