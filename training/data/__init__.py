"""Data sets in: arrays, images, texts, augmentation; imports `training`'s config."""
