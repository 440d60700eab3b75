"""Speed, memory and accuracy of meta-gradients, side by side; run as modules from the repository's root."""
