"""Images: find, lease, overlay, build."""
