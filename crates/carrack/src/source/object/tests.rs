use std::sync::Arc;

use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};

use super::ObjectSource;
use crate::source::config::{Environment, SourceConfig};
use crate::source::conformance::{Place, run};
use crate::source::open::open;
use crate::source::url::SourceUrl;

struct Memory(Arc<InMemory>);

impl Place for Memory {
    fn put(&self, path: &str, content: &[u8]) {
        let path = Path::parse(format!("set/{path}")).unwrap();
        let put = self.0.put(&path, content.to_vec().into());
        futures_util::FutureExt::now_or_never(put).unwrap().unwrap();
    }

    fn delete(&self, path: &str) {
        let path = Path::parse(format!("set/{path}")).unwrap();
        let delete = self.0.delete(&path);
        futures_util::FutureExt::now_or_never(delete)
            .unwrap()
            .unwrap();
    }
}

#[tokio::test]
async fn what_the_library_reads_is_a_source() {
    let memory = Arc::new(InMemory::new());
    let url = SourceUrl::parse("gs://bucket/set").unwrap().unwrap();
    let store: Arc<dyn ObjectStore> = memory.clone();
    run(Arc::new(ObjectSource::over(store, &url)), &Memory(memory)).await;
}

#[tokio::test]
async fn secrets_of_the_environment_are_not_shown() {
    let secret = "aHVudGVyMmh1bnRlcjI=";
    let environment = Environment::new(
        [
            ("AZURE_STORAGE_ACCOUNT_NAME", "account"),
            ("AZURE_STORAGE_ACCOUNT_KEY", secret),
            ("AWS_ACCESS_KEY_ID", "AKID"),
            ("AWS_SECRET_ACCESS_KEY", secret),
            ("AWS_SESSION_TOKEN", secret),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned())),
    );
    for url in ["az://container/prefix", "s3://bucket/prefix"] {
        let config = SourceConfig {
            url: url.to_owned(),
            ..SourceConfig::default()
        };
        let source = open(&config, &environment).unwrap();
        assert_eq!(source.url(), url);
        assert!(!format!("{source:?}").contains("aHVudGVy"), "{source:?}");
    }
    let config = SourceConfig {
        url: "gs://bucket".to_owned(),
        credentials: "none".to_owned(),
        ..SourceConfig::default()
    };
    assert!(open(&config, &Environment::default()).is_ok());
}
