"""Client of the HTTP interface for applications (extra ``client``)."""
