"""Scripts for maintainers: documents that are written from measurements, and data that the package ships."""
