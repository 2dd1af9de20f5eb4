//! Plans and outcomes as text, pages and deployment files.
