"""Draws a folder of images to try the commands on, for want of one: four shapes, in any colors.

    python examples/shapes.py images

makes images/train and images/val, with a directory for each class. Some are hard to tell.
"""

from jobs.shapes import main, write_shapes

__all__ = ["main", "write_shapes"]

if __name__ == "__main__":
    main()
