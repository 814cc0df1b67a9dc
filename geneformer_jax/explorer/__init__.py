"""What commands wrote below a folder, to look at in a browser; see `server` for how."""
