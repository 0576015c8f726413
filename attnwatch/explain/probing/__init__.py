"""Linear probes on the hidden states of all layers, from one forward per batch."""
