"""What every stage needs: files, progress, assets."""
