"""What turns docs/ into a site, beside Sphinx, MyST and furo: an extension in each module."""
