"""What several rooms use: messages, argument checks, files, states, processes."""
