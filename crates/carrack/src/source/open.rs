//! Makes a source of what is configured.
//!
//! In       a [`SourceConfig`] and an [`Environment`].
//! Out      a [`Source`] of the kind that its URL names.
//! Not here what the kinds do (`folder`, `s3`, `web`, `object`).

use std::path::Path;
use std::sync::Arc;

use super::config::{Environment, SourceConfig};
use super::folder::LocalSource;
use super::object::ObjectSource;
use super::s3::S3;
use super::url::{Scheme, SourceUrl};
use super::web::Web;
use super::{Source, SourceError, SourceErrorKind, http};

/// Opens a source. Called within the runtime that its reads will run on. Asks nothing of it yet.
///
/// # Errors
/// `Unusable` if what is configured cannot be a source.
pub fn open(
    config: &SourceConfig,
    environment: &Environment,
) -> Result<Arc<dyn Source>, SourceError> {
    let url = SourceUrl::parse(&config.url)
        .map_err(|error| SourceError::new(SourceErrorKind::Unusable, error.to_string()))?;
    let Some(url) = url else {
        let folder = LocalSource::new(Path::new(&config.url))?;
        return Ok(Arc::new(folder));
    };
    http::install_crypto();
    match url.scheme() {
        Scheme::S3 => Ok(Arc::new(S3::new(config, &url, environment)?)),
        Scheme::Http | Scheme::Https => Ok(Arc::new(Web::new(config, &url)?)),
        Scheme::Gcs | Scheme::Azure => {
            let source = ObjectSource::new(config, &url, environment)?;
            Ok(Arc::new(source))
        }
    }
}
