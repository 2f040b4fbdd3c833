"""What a late update is worth, or what it is turned into."""
