"""From a pretrained network to a supernet worth serving; imports the rest of `training`."""
