// What MemGuard's page uses of ComfyUI's frontend and of LiteGraph. What not every frontend or node has is optional.

declare namespace ComfyUI {
  interface Widget {
    name: string;
    type: string;
    value: any;
    serialize?: boolean;
    options?: { serialize?: boolean };
    element: HTMLElement;
  }

  interface Input {
    name: string;
    type: unknown;
    widget?: { name: string };
  }

  interface Link {
    origin_id: number;
    origin_slot: number;
    originIsIoNode?: boolean;
  }

  interface Node {
    id: number;
    graph: Graph | null;
    comfyClass?: string;
    type?: unknown;
    mode: number;
    size: [number, number];
    inputs?: Input[];
    widgets?: Widget[];
    properties: Record<string, any>;
    subgraph?: Graph;
    isVirtualNode?: boolean;
    isSubgraphNode?(): boolean;
    getInputLink?(slot: number): Link | null;
    resolveSubgraphOutputLink?(slot: number): { outputNode?: Node; link: Link } | undefined;
    addDOMWidget(name: string, type: string, element: HTMLElement, options: object): Widget;
    removeWidget(widget: Widget): void;
    computeSize(): [number, number];
    setSize(size: [number, number]): void;
    setDirtyCanvas(foreground: boolean, background: boolean): void;
    onConfigure?(...values: any[]): void;
  }

  interface Graph {
    id: string;
    nodes: Node[];
    getNodeById(id: number | string): Node | null | undefined;
  }

  interface Toast {
    severity: string;
    summary: string;
    detail: string;
    life: number;
  }

  interface Shelf {
    add(toast: Toast): void;
    remove?(toast: Toast): void;
    warning?(summary: string, options: { id: string; description: string; duration: number }): void;
  }

  interface Extension {
    name: string;
    aboutPageBadges?: object[];
    settings?: object[];
    setup?(): void;
    nodeCreated?(node: Node): void;
    loadedGraphNode?(node: Node): void;
    afterConfigureGraph?(): Promise<void>;
  }

  interface NodeErrors {
    [id: string]: { class_type: string; errors: { message: string; details: string }[] };
  }

  interface App {
    graph: Graph;
    rootGraph?: Graph;
    ui?: { settings?: EventTarget };
    extensionManager: { setting: { get(name: string): any }; toast: Shelf };
    registerExtension(extension: Extension): void;
    graphToPrompt(): Promise<{ output: any; workflow: object }>;
  }

  interface Api {
    addEventListener(type: string, act: (event: CustomEvent) => void): void;
    apiURL(path: string): string;
    fetchApi(path: string, options?: RequestInit): Promise<Response>;
    queuePrompt(number: number, prompt: object): Promise<{ prompt_id?: string; node_errors?: NodeErrors }>;
  }
}

declare module "*/scripts/app.js" {
  export const app: ComfyUI.App;
}

declare module "*/scripts/api.js" {
  export const api: ComfyUI.Api;
}
