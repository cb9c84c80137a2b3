"""TransFuse: blocks, network, pretrained weights."""
