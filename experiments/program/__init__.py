"""What every program of the project needs: flags, commands, signals, progress bars and run folders."""
