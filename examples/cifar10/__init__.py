"""Evidence on CIFAR-10: students of one store, taught in several ways, and compared."""
