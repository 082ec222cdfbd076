"""The commands. Entry points import torch only once the config composes."""
