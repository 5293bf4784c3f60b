import { render } from "preact";
import { App } from "./app";
import "./style.css";

const root = document.getElementById("app")!;
root.replaceChildren(); // what it says while the script is on its way, which Preact leaves there
render(<App />, root);
