"""Model page: one HTML file about the attention, important inputs, layers and confidence of a saved model."""
