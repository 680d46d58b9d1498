"""What is drawn and asked, a module for each family of pictures."""
