use std::path::PathBuf;
use std::sync::Arc;

use super::LocalSource;
use crate::source::conformance::{Place, run};

struct Folder(PathBuf);

impl Place for Folder {
    fn put(&self, path: &str, content: &[u8]) {
        let path = self.0.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
        // Change times move by ticks.
        std::thread::sleep(std::time::Duration::from_millis(20));
    }

    fn delete(&self, path: &str) {
        std::fs::remove_file(self.0.join(path)).unwrap();
    }
}

#[tokio::test]
async fn a_folder_is_a_source() {
    let dir = tempfile::tempdir().unwrap();
    let source = LocalSource::new(dir.path()).unwrap();
    run(Arc::new(source), &Folder(dir.path().to_path_buf())).await;
}
