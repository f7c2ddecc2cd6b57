"""Offline teacher labels for hard distillation: views, pairs, labels, stores, replay."""
