r"""Trains a small teacher on augmented views of labelled shards, for want of a published one.

python examples/train_teacher.py --shards shards/train --val-shards shards/val \
        --out teacher.safetensors --model test_resnet --image-size 64
"""

from jobs.small_teacher import main

if __name__ == "__main__":
    main()
