"""What the server makes of the combined update before it is added to the model."""
