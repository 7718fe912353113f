"""What the commands ``plan`` and ``bench`` compare: planners and orders side by side, and where figures came from."""
