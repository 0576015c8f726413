"""Which models are observed, rightly so, and can be pruned and routed? Tiny models of many architectures tell."""
