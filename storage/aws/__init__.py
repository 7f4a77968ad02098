"""What the adapters of Amazon's services share: addresses, credentials, signatures, and a client over them."""
