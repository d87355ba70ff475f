use super::Format;

#[test]
fn a_page_tells_what_it_is_by_its_beginning() {
    for (page, format) in [
        (
            "<?xml version=\"1.0\"?>\n<ListBucketResult xmlns=\"x\">",
            Some(Format::S3),
        ),
        (
            "<html>\r\n<head><title>Index of /</title>",
            Some(Format::Html),
        ),
        ("<!DOCTYPE HTML PUBLIC>", Some(Format::Html)),
        ("[\n{ \"name\":\"a\"}]", Some(Format::Json)),
        ("#carrack-manifest\na", Some(Format::Manifest)),
        ("#carrack-manifesto\na", None),
        ("hello", None),
        ("", None),
    ] {
        assert_eq!(Format::of(page.as_bytes()), format, "{page}");
    }
}
