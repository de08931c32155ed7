"""Starting a training on many processes: ``pretrain.sh`` for sbatch, ``launch`` for submitit. Never imports torch.

job      what is asked for (a frozen value), and everything that follows from it: pure functions
task     what each started process does: set the launch variables, run the training, end with its exit code
local    running a job on this machine
launch   the command line, and handing a job to submitit
"""
