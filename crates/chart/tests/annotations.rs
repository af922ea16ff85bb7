//! What Artifact Hub reads of Chart.yaml says the same as the chart.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use kubefledged_chart::{file, get, parse, yaml};
use serde_json::Value;

/// An annotation whose text is YAML.
fn annotation(name: &str) -> Value {
    let chart = yaml("charts/kubefledged/Chart.yaml").unwrap();
    let text = chart["annotations"][format!("artifacthub.io/{name}")].clone();
    parse(text.as_str().expect(name)).unwrap().remove(0)
}

#[test]
fn the_images_are_those_of_the_values() {
    let chart = yaml("charts/kubefledged/Chart.yaml").unwrap();
    let values = yaml("charts/kubefledged/values.yaml").unwrap();
    let images = annotation("images");
    let images = images.as_array().unwrap();
    assert_eq!(images.len(), 3);
    for image in images {
        let name = image["name"].as_str().unwrap();
        let value = get(&values, &format!("{name}.image"));
        let part = |field: &str| value[field].as_str().unwrap().to_owned();
        let version = chart["appVersion"].as_str().unwrap();
        let expected = format!("{}/{}:{version}", part("registry"), part("repository"));
        assert_eq!(image["image"], expected);
    }
}

#[test]
fn the_definition_and_its_example_are_ours() {
    let crd = yaml("charts/kubefledged/files/crd.yaml").unwrap();
    let described = annotation("crds");
    assert_eq!(described.as_array().unwrap().len(), 1);
    assert_eq!(described[0]["name"], crd["metadata"]["name"]);
    assert_eq!(described[0]["kind"], crd["spec"]["names"]["kind"]);
    assert_eq!(described[0]["version"], crd["spec"]["versions"][0]["name"]);

    let example = &annotation("crdsExamples")[0];
    let sample = yaml("deploy/kubefledged-imagecache.yaml").unwrap();
    for field in ["apiVersion", "kind", "spec"] {
        assert_eq!(example[field], sample[field], "{field}");
    }
}

#[test]
fn links_into_the_repository_name_files_that_exist() {
    let text = std::fs::read_to_string(file("charts/kubefledged/Chart.yaml")).unwrap();
    let mut found = 0;
    for word in text.split_whitespace() {
        let path = ["/blob/main/", "/kubefledged/main/"]
            .iter()
            .find_map(|before| word.split_once(before))
            .map(|(_, path)| path);
        if let Some(path) = path {
            assert!(file(path).exists(), "{path}");
            found += 1;
        }
    }
    assert!(found >= 4, "{found}");
}
