"""What every program of the project needs: flags, stopping, progress, run folders."""
