"""What each layer knows: linear probes on the hidden states of all layers, from one forward a batch."""
